"""A hub of the test's own, which this process takes for the hub; nothing else of the network is reached."""

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.publish.hub import TOKEN, Hub


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Hub() as served:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):  # as HF_ENDPOINT would, if this process began now
            told = getattr(constants, name).replace(constants._HF_DEFAULT_ENDPOINT, served.url)
            monkeypatch.setattr(constants, name, told)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # which this hub does not have
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        huggingface_hub.close_session()  # whose connections are to another
        yield served
        huggingface_hub.close_session()


def of_process(served: Hub, **more: str) -> dict[str, str]:
    """The environment in which a process takes it for the hub."""
    asked = {"HF_ENDPOINT": served.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": TOKEN}
    return asked | more
