"""The functions of the model that a backend may replace, held by the model in one place."""

from dataclasses import dataclass

from vitcore.model.attention import AttentionFunction, DropoutFunction, attention
from vitcore.model.dropout import dropout


@dataclass(frozen=True)
class Functions:
    """Attention and dropout as the model calls them.

    `model.functions = Functions(attention=mine)` changes every block at once.
    """

    attention: AttentionFunction = attention
    dropout: DropoutFunction = dropout
