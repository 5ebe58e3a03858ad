"""From a subject to the graphs that are proven and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass

from atm_export.backends import backends
from atm_export.graph import lint
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.graph.reading import copied
from atm_export.graph.saving import graph_from_file, save_graph
from atm_export.prove.ladder import Graphs
from atm_export.report.facts import graph_facts, shipped_outputs
from atm_export.runs.graphs import locations
from atm_export.runs.writing import WorkFolder
from atm_export.subject import Progress, Subject

STAGE = "traced.onnx"


def translate(subject: Subject, work: WorkFolder, progress: Progress) -> Graphs:
    """The graph for every backend; picks up the stage of an interrupted run."""
    done = _finished_stage(work)
    if done is not None:
        progress("translating to ONNX: found finished")
        return _graphs(subject, graph_from_file(done))
    progress("translating to ONNX")
    traced = subject.graph(subject.plan)
    files = save_graph(traced, STAGE, subject.config.external_data)
    for name, data in files.items():
        work.write(name, data)
    if len(files) > 1:  # the weights of the file are mapped: memory has them once
        traced = graph_from_file(work.path / STAGE)
    return _graphs(subject, traced)


def own_graphs(subject: Subject, names: Sequence[str], progress: Progress) -> Mapping[str, Graphs]:
    """By its name, the graph of each backend that runs another form best, where the plan has it."""
    found = {}
    for name in names:
        backend = backends[name]
        if backend.form != "plain" and subject.has_form(backend.form):
            progress(f"translating to ONNX for {backend.title}")
            graphs = _graphs(subject, subject.graph(subject.plan, backend.form))
            facts = {"backend": name, "form": backend.form}
            found[name] = replace(graphs, shipped=with_facts(graphs.shipped, facts))
    return found


def _graphs(subject: Subject, traced: ir.Model) -> Graphs:
    facts = graph_facts(subject.config, subject.model, subject.plan)
    shipped = with_facts(with_outputs(traced, shipped_outputs(subject)), facts)
    for graph in (traced, shipped):
        lint.check(graph)
    CheckerPass()(copied(shipped))  # it moves weights about
    return Graphs(traced, shipped)


def _finished_stage(work: WorkFolder) -> Path | None:
    """The traced graph of an interrupted run, if it is whole with the weights beside it."""
    done = work.finished(STAGE)
    whole = done is not None and all(work.finished(name) for name in locations(done.read_bytes()))
    return done if whole else None
