"""The report of a run: pages and pictures."""

from .int8 import DENSE, FLOAT, INT8, list_int8_remarks, write_int8_remark
from .page import write_report
from .remarks import write_remarks

__all__ = ["DENSE", "FLOAT", "INT8", "list_int8_remarks", "write_int8_remark", "write_remarks", "write_report"]
