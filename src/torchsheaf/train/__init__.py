"""Local learning: each edge's own derivative, no global backward pass; schedules and the loop."""

from torchsheaf.train.edge import EdgeRule as EdgeRule
from torchsheaf.train.equilibrium import EquilibriumRule as EquilibriumRule
from torchsheaf.train.first_order import FirstOrderRule as FirstOrderRule
from torchsheaf.train.fit import History as History
from torchsheaf.train.fit import fit as fit
from torchsheaf.train.joint_euler import JointEuler as JointEuler
from torchsheaf.train.joint_euler import JointState as JointState
from torchsheaf.train.losses import Loss as Loss
from torchsheaf.train.losses import loss_named as loss_named
from torchsheaf.train.recursive import RecursiveRule as RecursiveRule
from torchsheaf.train.reluctance import Reluctance as Reluctance
from torchsheaf.train.rule import LocalRule as LocalRule
from torchsheaf.train.trainer import SheafTrainer as SheafTrainer
