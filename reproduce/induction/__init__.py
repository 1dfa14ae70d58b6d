"""A small transformer that learned induction, read as a sheaf beside activation patching."""
