"""A run beside the published rows: what is matched and shown, and how orderings are judged."""

import math
import re

import pytest
from made_records import make_search, make_single, make_trial

from tune_fusion.errors import InputError
from tune_fusion.records import TrialState
from tune_fusion.reporting.answer import Finalist, SeedRun, answer
from tune_fusion.reporting.papers import noise, paper_report

EFFNET = "tf_efficientnetv2_s.in1k"


def space(model=EFFNET, data="cifar10", **more):
    lines = [f"model: {{name: {model}}}", f"data: {{name: '{data}'}}", "space: {switch_layer: all}"]
    if "limit" in more:
        lines[1] = f"data: {{name: {data}, limit: {more['limit']}}}"
    return "\n".join(lines) + "\n"


def fusion(number, value, low="adam", high="sgd", switch=6, **changes):
    parameters = {"switch_layer": switch, "low.optimizer": low, "high.optimizer": high}
    return make_trial(number, value, parameters=parameters, **changes)


def single(number, value, name="adam", **changes):
    return make_single(number, value, parameters={"switch_layer": "all", "low.optimizer": name}, **changes)


def confirmed(trial, tests, validations=None):
    """The trial confirmed with these test accuracies, one a seed."""
    runs = [
        SeedRun(
            seed,
            "completed",
            10,
            9,
            {
                "val_accuracy": (validations or tests)[seed],
                "test_accuracy": value,
                "test_loss": 1 - value,
                "test_macro_f1": value - 0.01,
                "test_loss_softmax": 1.5 + seed / 100,
            },
        )
        for seed, value in enumerate(tests)
    ]
    return Finalist(
        trial=trial.number,
        arm=trial.arm,
        origin=trial.origin,
        single=trial.single,
        label="label",
        switch_layer_name=trial.switch_layer_name,
        configuration=trial.configuration,
        parameters=trial.parameters,
        search_value=0.9,
        runs=tuple(runs),
    )


def answer_of(*finalists):
    return answer("made", "val_accuracy", "max", finalists, 10_000)


def report(trials, finalists=(), table="table2", text=None, **changes):
    found = answer_of(*finalists) if finalists else None
    return paper_report(make_search(*trials, **changes), found, table, text or space())


def row(text, label):
    """The cells of the first table's row."""
    (line, *_) = (line for line in text.splitlines() if line.startswith(label + "  "))
    return re.split(r"\s{2,}", line.removeprefix(label).strip())


def judgement(text, claim):
    """The paper's and the run's line below a claim, with lines that were broken joined."""
    joined = re.sub(r"\n {13}(?=\S)", " ", text)
    after = joined.partition(f"\n  {claim}\n")[2].splitlines()
    return after[0].strip(), after[1].strip()


# --- rows -----------------------------------------------------------------------------------------


def test_a_confirmed_row_shows_mean_deviation_and_seeds_beside_the_published_values():
    trial = fusion(0, [0.95])
    text = report([trial], [confirmed(trial, [0.93, 0.932, 0.934, 0.936, 0.938])])
    assert row(text, "Adam Block 0-6 | SGD") == [
        "93.74",
        "93.40 ± 0.32 (5)",
        "0.2311",
        "0.0660 ± 0.0032 (5)",
        "93.71",
        "92.40 ± 0.32 (5)",
    ]


def test_a_row_of_the_search_alone_is_marked_and_the_test_data_unread():
    text = report([fusion(0, [0.91, 0.92, 0.90])])
    assert row(text, "Adam Block 0-6 | SGD")[:2] == ["93.74", "92.00 v"]
    assert "this search has no confirmation: its test data were never read" in text


def test_rows_that_the_run_lacks_are_dashes():
    text = report([fusion(0, [0.9])])
    assert row(text, "Adam Block 0-5 | SGD") == ["93.85", "-", "0.2399", "-", "93.44", "-"]
    assert row(text, "SGD All block")[:2] == ["91.03", "-"]


def test_a_row_is_matched_by_both_optimizers_and_the_switch():
    trials = [
        fusion(0, [0.81], "adam", "sgd", 5),
        fusion(1, [0.82], "sgd", "adam", 5),
        fusion(2, [0.83], switch=1),
    ]
    text = report(trials)
    assert row(text, "Adam Block 0-5 | SGD")[1] == "81.00 v"
    assert row(text, "SGD Block 0-5 | Adam")[1] == "82.00 v"
    assert row(text, "Adam Block 0-1 | SGD")[1] == "83.00 v"
    assert row(text, "Adam Block 0-6 | SGD")[1] == "-"


def test_two_equal_halves_are_the_row_of_all_layers():
    same = fusion(0, [0.84], "sgd", "sgd", 3, single=True)
    assert row(report([same]), "SGD All block")[1] == "84.00 v"


def test_equal_optimizers_with_other_settings_are_no_row_of_all_layers():
    assert row(report([fusion(0, [0.84], "sgd", "sgd", 3)]), "SGD All block")[1] == "-"


def test_of_several_trials_of_a_row_the_best_by_validation_is_shown_and_no_diverged_one():
    trials = [fusion(0, [0.80]), fusion(1, [0.85]), fusion(2, [0.99], state=TrialState.DIVERGED)]
    assert row(report(trials), "Adam Block 0-6 | SGD")[1] == "85.00 v"


def test_of_several_confirmed_ones_validation_chooses_and_not_the_test():
    one, other = fusion(0, [0.8]), fusion(1, [0.8])
    finalists = [confirmed(one, [0.9] * 5, [0.7] * 5), confirmed(other, [0.8] * 5, [0.75] * 5)]
    assert row(report([one, other], finalists), "Adam Block 0-6 | SGD")[1] == "80.00 ± 0.00 (5)"


def test_table_3_shows_the_published_spread():
    text = report([fusion(0, [0.9], "nadam")], table="table3")
    assert row(text, "NAdam Block 0-6 | SGD")[:4] == ["92.57 ± 0.08", "90.00 v", "0.2715 ± 0.090", "-"]


# --- which part of the table ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data", "part", "notes"),
    [
        (EFFNET, "cifar10", "EfficientNetV2 on CIFAR-10", 0),
        ("vit_base_patch16_224.augreg_in1k", "cifar10", "ViT-B/16 on CIFAR-10", 0),
        ("tf_efficientnet_lite0", "folder:data/cifar10-jpeg", "EfficientNetV2 on CIFAR-10", 2),
        (EFFNET, "folder:photos", "EfficientNetV2 on the paper's 18 classes of photographs", 1),
        ("vit_tiny_patch16_224", "folder:photos", "ViT-B/16 on the paper's 18 classes of photographs", 2),
        ("lenet5", "digits", "EfficientNetV2 on CIFAR-10", 2),
    ],
)
def test_model_and_data_choose_the_part_and_differences_are_said(model, data, part, notes):
    text = report([fusion(0, [0.9])], text=space(model, data))
    assert text.splitlines()[1] == f"  part:  {part}"
    assert text.count("NOTE:") == notes
    if notes:
        assert f"({data})" in text or f"({model})" in text


def test_the_run_is_named_with_what_it_trained():
    text = report([fusion(0, [0.9])], text=space(limit=4000))
    assert (
        f"  run:   made: {EFFNET} on cifar10, 10 epochs, at most 4,000 training images" in text.splitlines()
    )


def test_an_unknown_table_is_refused():
    with pytest.raises(InputError, match="unknown table; did you mean 'table3'"):
        report([], table="tabel3")


def test_a_search_without_a_trial_is_printed():
    assert row(report([]), "Adam Block 0-6 | SGD")[1] == "-"


# --- orderings ------------------------------------------------------------------------------------

ABOVE_ADAM = "Adam Block 0-6 | SGD is above Adam on all layers"
BEST = "Adam Block 0-5 or 0-6 | SGD is the best of the table"
BASE = [0.90, 0.91, 0.92, 0.91, 0.90]


def paired(differences):
    ours, theirs = fusion(0, [0.9]), single(1, [0.9])
    tests = [base + difference for base, difference in zip(BASE, differences, strict=True)]
    return report([ours, theirs], [confirmed(ours, tests), confirmed(theirs, BASE)])


@pytest.mark.parametrize(
    ("differences", "word", "number"),
    [
        ([0.01, 0.02, 0.03, 0.02, 0.01], "confirms", "+1.80 points [+1."),
        ([-0.01, -0.02, -0.03, -0.02, -0.01], "contradicts", "-1.80 points [-2."),
        ([0.01, -0.02, 0.03, -0.02, 0.01], "cannot tell", "+0.20 points [-"),
    ],
)
def test_a_pair_is_judged_by_its_paired_interval(differences, word, number):
    paper, run = judgement(paired(differences), ABOVE_ADAM)
    assert paper == "paper: +0.29 points"
    assert run.startswith(f"run:   {word}: {number}")
    assert run.endswith(", 5 seeds")


def test_one_seed_of_the_search_cannot_tell():
    run = judgement(report([fusion(0, [0.99]), single(1, [0.5])]), ABOVE_ADAM)[1]
    assert run.startswith("run:   cannot tell: Adam Block 0-6 | SGD: not confirmed")


def test_one_confirmed_seed_cannot_tell():
    ours, theirs = fusion(0, [0.9]), single(1, [0.9])
    text = report([ours, theirs], [confirmed(ours, [0.99]), confirmed(theirs, [0.5])])
    assert judgement(text, ABOVE_ADAM)[1] == "run:   cannot tell: +49.00 points, 1 seed"


def test_a_missing_rival_cannot_tell():
    ours = fusion(0, [0.9])
    text = report([ours], [confirmed(ours, BASE)])
    assert judgement(text, ABOVE_ADAM)[1] == "run:   cannot tell: Adam All block: not in this run"


def whole_table(best=0.95, other=0.0):
    """All fourteen rows confirmed; Adam 0-6 | SGD at `best`, SGD 0-2 | Adam by `other` above the rest."""
    trials, finalists = [], []
    for low, high in (("adam", "sgd"), ("sgd", "adam")):
        trials += [fusion(len(trials) + i, [0.9], low, high, switch) for i, switch in enumerate(range(1, 7))]
    trials += [single(12, [0.9], "adam"), single(13, [0.9], "sgd")]
    for trial in trials:
        level = best if trial.number == 5 else 0.9 + (other if trial.number == 7 else 0.0)
        finalists.append(confirmed(trial, [level + step for step in (0, 0.001, 0.002, 0.001, 0)]))
    return report(trials, finalists)


def test_the_best_of_the_table_is_confirmed_only_above_every_other_row():
    paper, run = judgement(whole_table(), BEST)
    assert paper == "paper: +0.40 points"
    assert run == "run:   confirms: of 12 other rows 12 below, 0 above, 0 too near to tell, 0 not confirmed"


def test_the_best_of_the_table_is_contradicted_by_one_row_above_it():
    run = judgement(whole_table(other=0.08), BEST)[1]
    assert run.startswith("run:   contradicts: of 12 other rows 11 below, 1 above")


def test_the_best_of_the_table_cannot_be_told_while_rows_are_missing():
    ours, theirs = fusion(0, [0.9]), single(1, [0.9])
    text = report([ours, theirs], [confirmed(ours, [0.95] * 5), confirmed(theirs, BASE)])
    run = judgement(text, BEST)[1]
    assert (
        run == "run:   cannot tell: of 12 other rows 1 below, 0 above, 0 too near to tell, 11 not confirmed"
    )


def test_published_differences_below_the_test_set_s_own_noise_are_marked():
    text = report([fusion(0, [0.9], "adamw", switch=10)], table="table3", text=space("vit_base_patch16_224"))
    own = 100 * math.sqrt(0.9475 * 0.0525 / 10_000)
    assert noise(94.75, 10_000) == pytest.approx(own)
    paper = judgement(text, "Adam in the low-level layers is above AdamW")[0]
    assert paper == f"paper: +0.19 points, below the test set's own noise of {own:.2f} (10,000 images)"
    assert judgement(text, "Adam in the low-level layers is above NAdam")[0] == "paper: +0.32 points"


def test_without_the_number_of_test_images_the_noise_is_unknown():
    text = report([fusion(0, [0.9])], text=space(data="folder:photos"))
    assert "own noise of" not in text
    assert "does not print how many test images" in text


# --- HN_Adam --------------------------------------------------------------------------------------


def hn_adam(number, name, accuracies, **changes):
    return single(number, accuracies, name, arm="fusion" if name.startswith("hn") else "control", **changes)


def test_hn_adams_loss_is_shown_as_its_paper_computed_it():
    trial = hn_adam(0, "hn_adam", [0.98])
    text = report(
        [trial],
        [confirmed(trial, [0.98, 0.99])],
        "hn_adam_mnist",
        space("hn_mnist_cnn", "mnist"),
        fusions=False,
    )
    assert "NOTE" not in text
    assert row(text, "HN_Adam")[:4] == ["98.59", "98.50 ± 0.71 (2)", "1.4717", "1.5050 ± 0.0071 (2)"]


def test_training_losses_are_the_search_s_smallest():
    trial = hn_adam(0, "adabelief", [0.9, 0.8])
    trial.epochs[0]["train_loss"], trial.epochs[1]["train_loss"] = 0.03, 0.02
    text = report([trial], [], "hn_adam_cifar10", space("hn_cifar_cnn"), fusions=False)
    assert row(text, "AdaBelief") == ["-", "90.00 v", "0.0101", "0.0200 v"]


def test_hn_adam_is_compared_with_each_rival():
    ours, rival = hn_adam(0, "hn_adam", [0.9]), hn_adam(1, "rmsprop", [0.9])
    finalists = [confirmed(ours, [base + 0.01 for base in BASE]), confirmed(rival, BASE)]
    text = report([ours, rival], finalists, "hn_adam_cifar10", space("hn_cifar_cnn"), fusions=False)
    paper, run = judgement(text, "HN_Adam is above RMSprop")
    assert paper == "paper: the values are not in the text at hand"
    assert run.startswith("run:   confirms: +1.00 points")
    assert judgement(text, "HN_Adam is above SGD")[1] == "run:   cannot tell: SGD: not in this run"


def test_remark_1_is_chosen_by_the_network():
    text = report([hn_adam(0, "hn_adam", [0.9])], table="remark1", text=space("alexnet_cifar"), fusions=False)
    assert row(text, "HN_Adam")[:2] == ["97.89", "90.00 v"]
    paper, run = judgement(text, "HN_Adam is above EVGO")
    assert paper == "paper: +17.47 points"
    assert run.startswith("run:   cannot tell")


def test_every_line_fits_a_page():
    assert max(map(len, whole_table().splitlines())) <= 125
