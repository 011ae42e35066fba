"""Devices that dispatch takes a CPU for: at rest, with room, and as fast as each test says."""


class Device:
    """A test gives it `sample`, the milliseconds that a run takes."""

    captures, has_room = False, True

    def __init__(self, **versions):
        self.versions = {"device": "a CPU in a GPU's place", "driver": "1", **versions}

    def identity(self, device):
        return self.versions

    def capturing(self):
        return self.captures

    def room(self, device):
        return self.has_room

    def aside(self, device, work):
        return work()
