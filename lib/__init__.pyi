from lib.api.comparing import Comparison as Comparison
from lib.api.comparing import compare as compare
from lib.api.editing import Edited as Edited
from lib.api.editing import edit as edit
from lib.api.editing import open as open
from lib.api.facts import Edit as Edit
from lib.api.facts import edits as edits
from lib.api.lists import list_editors as list_editors
from lib.api.lists import list_models as list_models
from lib.api.models import load as load

__version__: str
