"""The reduction methods, by name: each says in one file what it asks, decides and does."""

from __future__ import annotations

from atm_export.methods.atm import Atm
from atm_export.methods.ats import Ats
from atm_export.methods.base import Method
from atm_export.methods.diffrate import Diffrate
from atm_export.methods.evit import Evit
from atm_export.methods.mctf import Mctf
from atm_export.methods.none import Unmerged
from atm_export.methods.pitome import Pitome
from atm_export.methods.tome import Tome
from atm_export.methods.zerotprune import Zerotprune
from atm_export.registry import Registry

methods: Registry[Method] = Registry("method")
_SHIPPED = (Atm, Tome, Evit, Diffrate, Mctf, Pitome, Ats, Zerotprune, Unmerged)
for _method in (each() for each in _SHIPPED):
    methods.add(_method.name, _method)

USUAL_METHOD = Atm.name
