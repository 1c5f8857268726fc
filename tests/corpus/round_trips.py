"""Which templates cannot write a turn again as the model wrote it, and why; `docs/families.md` says it too."""

from __future__ import annotations

import re
from collections.abc import Mapping

TURN_ENDS = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<\|eom_id\|>|</s>|(?<=\})<\|call\|>|<\|end_of_text\|>|<turn\|>|<\|END_OF_TURN_TOKEN\|>|"
    r"\[e~\[|<seed:eos>|<｜end▁of▁sentence｜>|<｜tool▁outputs▁begin｜>|<\|message_sep\|>|<\|end_of_msg\|>|<SPECIAL_12>|"
    r"<\|role_end\|>|<\|observation\|>|</assistant>|<end_of_sentence>|<\|tool_response>|<\|eot\|>|<sep>|\[RESULT1|"
    r"<\|end\|>\n|<\|calls\|>|<｜hy_eos:opensource｜>"
)
"""Where a model's turn ends: the tokens that end a sequence, or the beginning of the next turn."""

CANNOT: Mapping[str, Mapping[str, str]] = {}
