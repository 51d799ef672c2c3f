import pytest
import torch.distributed as dist


@pytest.fixture(scope="module")
def process_group():
    """A process group with only this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
