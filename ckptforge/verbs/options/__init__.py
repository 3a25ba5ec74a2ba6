"""The options of every verb, written once: a record for each verb, from which come its signature in
Python, its command line, its help and its JSON schema."""

from __future__ import annotations

from ckptforge.verbs.options.looking import Check as Check
from ckptforge.verbs.options.looking import Clean as Clean
from ckptforge.verbs.options.looking import Compare as Compare
from ckptforge.verbs.options.looking import Finish as Finish
from ckptforge.verbs.options.looking import Inspect as Inspect
from ckptforge.verbs.options.looking import MappingCheck as MappingCheck
from ckptforge.verbs.options.looking import MappingShow as MappingShow
from ckptforge.verbs.options.looking import Verify as Verify
from ckptforge.verbs.options.opening import Open as Open
from ckptforge.verbs.options.opening import Save as Save
from ckptforge.verbs.options.option import PathLike as PathLike
from ckptforge.verbs.options.option import Progress as Progress
from ckptforge.verbs.options.option import Say as Say
from ckptforge.verbs.options.record import Options as Options
from ckptforge.verbs.options.shared import Converting as Converting
from ckptforge.verbs.options.shared import Overflow as Overflow
from ckptforge.verbs.options.shared import Parted as Parted
from ckptforge.verbs.options.shared import Resharding as Resharding
from ckptforge.verbs.options.shared import Running as Running
from ckptforge.verbs.options.surgery import Average as Average
from ckptforge.verbs.options.surgery import Edit as Edit
from ckptforge.verbs.options.surgery import Extract as Extract
from ckptforge.verbs.options.surgery import Stats as Stats
from ckptforge.verbs.options.writing import Convert as Convert
from ckptforge.verbs.options.writing import Merge as Merge
from ckptforge.verbs.options.writing import Reshard as Reshard
from ckptforge.verbs.options.writing import Split as Split
from ckptforge.verbs.options.writing import Strategy as Strategy
from ckptforge.verbs.options.writing import ToMs as ToMs
from ckptforge.verbs.options.writing import ToTorch as ToTorch
