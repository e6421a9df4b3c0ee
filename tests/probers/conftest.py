from __future__ import annotations

import pytest
from torch import Tensor

from safeswitch.activations.states import Activations
from tests.probers.made_states import make_acts


@pytest.fixture(scope="session")
def data() -> tuple[Activations, Tensor]:
    return make_acts()
