"""AMC'23: the 40 problems of AMC 12A and 12B of 2023 that have a number as answer; copies store it as a float."""

from .table import Hub, Table

AMC23 = Table(
    "amc23",
    Hub("math-ai/amc23", "80815d37005feb82cd7f8fbc6901d5d3eff43057", "test"),
    rows=(40,),
)
