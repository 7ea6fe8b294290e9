"""The survey's table and the citations that come from it."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jprune
from jprune import allocate, criteria, errors, recipes, schedules, survey
from jprune.blocks import grains as granularity
from jprune.citation import citation
from jprune.zoo import densenet

NAMES = """
    obd obs granularity han data_free apoz dns greedy_forward lottery_ticket edge_popup subset_sum
    guided_sparsity particle_filter ssl less_is_more group_brain_damage iht taylor2016 taylor
    channel_lasso thinet entropy energy_aware aofp bar lcp partial_order increg eigendamage c_obd
    c_obs kron_obd kron_obs cpli gal gsm fbs struct_admm mfp lcs ssr autocompress manidp metapruning
    play_and_prune csgd tas variational autopruner dpf snip random cacp scratch_e scratch_b fisher
    from_scratch three_d l1 l2 slimming fpgm hrank chip sfp asfp lamp gmp grasp synflow rigl erk set
    nm movement woodfisher m_fac exact_obs sparsegpt depgraph greg amc netadapt resrep hesso
""".split()
BIBLIOGRAPHY = (Path(jprune.__file__).parent / "survey.bib").read_text()
PAPERS = {paper.number: paper for paper in survey.papers() if paper.number}


def keys(text):
    return re.findall(r"^@\w+\{(\w+(?:\.\d+)?),", text, re.MULTILINE)


def test_every_reference_of_the_survey_is_there_once_and_has_a_method():
    numbers = [paper.number for paper in survey.papers() if paper.number is not None]
    assert numbers == list(range(1, 53))
    assert {ref for row in survey.rows() for ref in row["refs"]} == set(range(1, 53))
    placed = [number for numbers in survey.TAXONOMY.values() for number in numbers]
    assert sorted(placed) == numbers


def test_names_are_those_of_the_command_line():
    names = [row["name"] for row in survey.rows()]
    assert len(names) == len(set(names))
    assert sorted(names) == sorted(NAMES)


def test_rows_say_where_a_method_stands():
    rows = {row["name"]: row for row in survey.rows()}
    assert rows["taylor"]["refs"] == [18]
    assert rows["taylor"]["taxonomy"] == ["structured", "filter level", "three-step", "static"]
    assert rows["fbs"]["taxonomy"][-1] == "dynamic"
    assert rows["obs"]["taxonomy"] == ["unstructured"]
    assert rows["three_d"]["taxonomy"][-1] == "three dimensions"
    assert rows["l1"]["refs"] == []
    assert rows["l1"]["taxonomy"] == ["baseline"]
    assert rows["edge_popup"]["refs"] == [10]
    assert rows["edge_popup"]["paper"].startswith("Malach et al., Proving the Lottery Ticket")
    assert "Randomly Weighted" in rows["edge_popup"]["paper"]
    for row in rows.values():
        assert re.search(r"\b(19|20)\d\d\b", row["paper"])


def test_implemented_is_what_the_recipes_define():
    implemented = {row["name"]: row["file"] for row in survey.rows() if row["implemented"]}
    assert set(implemented) == set(recipes.METHODS)
    root = Path(jprune.__file__).parent.parent
    for name, file in implemented.items():
        assert f'"{name}"' in (root / file).read_text()
    for row in survey.rows():
        assert row["implemented"] == (row["file"] is not None)


def test_papers_are_complete_bibtex():
    for paper in survey.papers():
        assert {"author", "title", "year"} <= set(paper.fields)
        assert paper.kind != "inproceedings" or "booktitle" in paper.fields
        assert paper.kind != "article" or "journal" in paper.fields
        assert paper.kind != "misc" or "eprint" in paper.fields
        assert paper.fields["year"] in paper.key
        assert paper.bibtex.count("{") == paper.bibtex.count("}")
    for field in ("eprint", "title"):
        values = [paper.fields[field] for paper in survey.papers() if field in paper.fields]
        assert len(values) == len(set(values))
    found = [paper.key for paper in survey.papers()]
    assert len(found) == len(set(found))
    assert len(found) == BIBLIOGRAPHY.count("\n@")


def test_years_and_authors_of_some():
    assert PAPERS[1].text == "LeCun et al., Optimal Brain Damage, NIPS 1990"
    assert PAPERS[9].text.startswith("Frankle and Carbin, The Lottery Ticket Hypothesis")
    assert PAPERS[33].text.startswith("Zhang et al., StructADMM")
    assert PAPERS[16].text.endswith("Methods, 2016, arXiv 1607.05423")


def test_citation_reads_docstrings_of_functions_modules_and_what_they_made():
    fn, loss = (lambda v, x: x), (lambda out, batch: out)
    taylor = ["molchanov2019importance"]
    assert keys(citation(criteria.taylor)) == taylor
    assert keys(citation(criteria.taylor(fn, loss))) == taylor
    assert keys(citation(functools.partial(criteria.taylor, fn))) == taylor
    assert keys(citation(schedules.cubic(0.5, 0, 2))) == ["zhu2017prune"]
    assert keys(citation(schedules.iterative)) == ["frankle2019lottery"]
    assert keys(citation({"any": [criteria.random(jax.random.key(0))]})) == ["mittal2018recovering"]
    assert keys(citation(granularity)) == ["mao2017exploring", "zhou2021learning"]


def test_citation_of_a_method_and_of_a_recipe():
    assert keys(citation("eigendamage", "taylor", "obd")) == [
        "lecun1990optimal",
        "molchanov2019importance",
        "wang2019eigendamage",
    ]
    recipe = recipes.find("taylor")(jprune.Budget(macs=0.5), None, recipes.Train(1, 0.1))
    assert "molchanov2019importance" in keys(citation(recipe))


def test_citation_prints_each_paper_once_and_unknown_ones_by_number():
    text = citation(criteria.magnitude(), criteria.magnitude, densenet, "l1")
    assert keys(text) == ["han2015learning", "li2017pruning", "arxiv1608.06993"]
    assert PAPERS[4].bibtex in text
    assert "eprint = {1608.06993}" in text


def test_citation_of_what_cites_nothing_is_empty():
    assert citation(jprune.trace, jnp.ones(3), None, 1.0, allocate.uniform) == ""


def test_citation_matches_titles_too():
    def mine():
        """Something.

        References:
            Zhou and others: Less is more:
            towards compact CNNs (no number).

        Returns:
            Not "Pruning from scratch".
        """

    assert keys(citation(mine)) == ["zhou2016less"]


def test_errors_say_what_to_write():
    with pytest.raises(errors.ArgumentError, match=r'citation\("taylor"\)'):
        citation()
    with pytest.raises(errors.ArgumentError, match="no method 'tailor'"):
        citation("tailor")
