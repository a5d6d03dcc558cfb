"""Training."""
from dataclasses import dataclass
@dataclass(frozen=True, kw_only=True)
class Recipe:
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    ema_decay: float = 0.99
    prediction: str = "epsilon"
    beta_schedule: str = "squaredcos_cap_v2"
    timesteps: int = 1000
    label_dropout: float = 0.1
    precision: str = "no"
    evaluate_every: int = 50
def train(): ...
