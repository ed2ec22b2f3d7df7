"""What an agent is told lives for hours: Python's collector would look through all of it again and again while everybody waits."""

from __future__ import annotations

import gc

# Below this many objects of the controller it takes less than a few milliseconds to look through them.
OBJECTS_MIN = 500


class LongLived:
    """Leaves what is in force out of later collections, each time that it has doubled.

    Nothing of it is in a cycle, so what goes is freed as ever. A hundred thousand rules take half a second to look through.
    """

    def __init__(self) -> None:
        self._objects = OBJECTS_MIN // 2

    def note(self, objects: int) -> None:
        """Say how many objects of the controller are held now."""
        if objects >= 2 * self._objects:
            self._objects = objects
            gc.freeze()
