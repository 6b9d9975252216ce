"""The gate's promises, one scene each, on every server."""

from __future__ import annotations

import pytest
from support.gate_scenes import SCENES, Scene
from support.gate_scenes_again import AGAIN
from support.gate_scenes_recount import RECOUNT
from support.gate_scenes_returned import RETURNED
from support.gate_world import GateWorld
from support.servers import Server


@pytest.mark.parametrize(
    "scene", [*SCENES, *RETURNED, *AGAIN, *RECOUNT], ids=lambda scene: scene.__name__
)
def test_the_gate_keeps_its_promise(every_server: Server, scene: Scene) -> None:
    """What the scene's first line says."""
    world = GateWorld(every_server)
    try:
        scene(world)
    finally:
        world.close()
