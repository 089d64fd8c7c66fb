"""pykmip-server, which speaks KMIP no newer than a file says, if there is one."""

import os
import sys

from kmip.services.server import engine, server

LIMIT = sys.argv.pop(1)


def spoken(self):
    if not os.path.exists(LIMIT):
        return self.known
    with open(LIMIT) as f:
        newest = f.read()
    return [v for v in self.known if str(v) <= newest]


def know(self, versions):
    self.known = versions


engine.KmipEngine._protocol_versions = property(spoken, know)
server.main()
