from fedsim.api.experiment import Experiment as Experiment
from fedsim.api.experiment import load as load
from fedsim.api.results import Result as Result
from fedsim.api.results import Results as Results
from fedsim.api.results import compare as compare
from fedsim.api.results import runs as runs
from fedsim.base.rows import Rows as Rows
from fedsim.method.inbox import Inbox as Inbox
from fedsim.method.local import Local as Local
from fedsim.method.strategy import Strategy as Strategy
from fedsim.metrics.metrics import Metric as Metric
from fedsim.metrics.view import View as View
from fedsim.schedule.base import Schedule as Schedule
from fedsim.schedule.news import News as News
from fedsim.schedule.verbs import Verbs as Verbs
from fedsim.settings.part import setting as setting
from fedsim.task.loss import Loss as Loss

FACE: dict[str, str]
PARTS: dict[str, str]
__version__: str
