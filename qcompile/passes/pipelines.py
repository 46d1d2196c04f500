"""The order of the passes, with the reason of each place."""

from __future__ import annotations

from collections.abc import Sequence

from qcompile.passes.canonicalize.drop_identities import DropIdentities
from qcompile.passes.canonicalize.fix_constants import FixConstants
from qcompile.passes.canonicalize.fold_constants import FoldConstants
from qcompile.passes.canonicalize.fuse_norms import FuseNorms
from qcompile.passes.canonicalize.inline_functions import InlineFunctions
from qcompile.passes.canonicalize.learn_sizes import LearnSizes
from qcompile.passes.canonicalize.lift_constants import LiftConstants
from qcompile.passes.canonicalize.modernize import Modernize
from qcompile.passes.canonicalize.name_values import NameValues
from qcompile.passes.canonicalize.split_caches import SplitCaches
from qcompile.passes.canonicalize.split_norms import SplitNorms
from qcompile.passes.canonicalize.split_projections import SplitProjections
from qcompile.passes.center_norms import CenterNorms
from qcompile.passes.fold_batch_norms import FoldBatchNorms
from qcompile.passes.fold_scales import FoldScales
from qcompile.passes.fold_shifts import FoldShifts
from qcompile.passes.fold_tables import FoldTables
from qcompile.passes.insert_boundaries import InsertBoundaries
from qcompile.passes.keep_sites import KeepSites
from qcompile.passes.pipeline import Pipeline
from qcompile.passes.tie_heads import TieHeads

__all__ = ["CANONICALIZE", "KEEP_MODULES", "PREPARE", "preparation"]

#: One spelling per idea, whatever exporter wrote the graph.
CANONICALIZE = Pipeline(
    (
        FixConstants(),  # first: what a caller may replace is no constant to anything that follows
        Modernize(),  # before inlining: functions of ours are written in newer operators
        InlineFunctions(),  # bodies of functions hide constants and norms
        LiftConstants(),  # folding reads initializers alone
        DropIdentities(),  # before folding, which would make a copy of a weight for every Identity behind it
        FoldConstants(),  # what is left between weights and their readers would hide sites
        DropIdentities(),  # folding leaves some
        NameValues(),  # from here on, sites are told apart by their names
        SplitCaches(),  # before sizes are learned: caches and masks get theirs
        SplitNorms(),  # before sizes are learned: the rules have none for norms of sums that are read
        LearnSizes(),  # norms and projections are recognized by sizes
        FuseNorms(),  # on sizes; before projections, whose cuts are found behind norms
        SplitProjections(),  # last: it reads the shapes that all others left
    ),
    "canonicalize",
)

#: From a captured graph to one whose freedoms are as large as they can be; its function stays the same.
PREPARE = Pipeline(
    (
        CANONICALIZE,  # the others find what they look for under one name
        FoldBatchNorms(),  # first of the folds: the others find the sites as they will be
        FoldTables(),  # before shifts and scales: a norm right behind a table would become a scale and a shift
        FoldShifts(),  # before scales: a shift behind a scale keeps it from being folded
        FoldScales(),  # before centering: a norm is only free once its scale is gone
        CenterNorms(),  # last of the folds: it needs every writer of the stream in view
        InsertBoundaries(),  # once freedoms are final: where one is still missing, it may pay to part a space
    ),
    "prepare",
)

#: The same where every operator must stay with its module: content of constants changes, and nothing else.
KEEP_MODULES = Pipeline(
    (
        Pipeline(
            CANONICALIZE.passes[:-1], "canonicalize"
        ),  # the last one parts fused projections, which are one module
        FoldScales(norms=True),  # a norm keeps its weight as ones; other scales may be no parameters
    ),
    "keep-modules",
)


def preparation(keep: Sequence[str] = (), *, ties: bool = False, modules: bool = False, parts: bool = True) -> Pipeline:
    """``PREPARE`` where sites that those patterns mean stay as they are: marked once they have names, before folds.

    Args:
        ties: for a target that stores tables and heads alike; behind all folds, to see what they made of heads.
        modules: for a target that writes parameters back to their modules.
        parts: whether spaces may be parted, for a target with operators for transforms.
    """
    marks = [KeepSites(pattern) for pattern in keep]
    if modules:
        first, *others = KEEP_MODULES.passes
        return Pipeline((first, *marks, *others), KEEP_MODULES.name)
    folds = [one for one in PREPARE.passes[1:] if parts or one.name != InsertBoundaries.name]
    return Pipeline((CANONICALIZE, *marks, *folds, *([TieHeads()] if ties else [])), PREPARE.name)
