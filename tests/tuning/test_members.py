import socket
from concurrent.futures import Future
from pathlib import Path

import pytest

from tune_fusion.errors import InputError, TuneFusionError
from tune_fusion.space.settings import DataSettings, ResourceSettings
from tune_fusion.tuning import members
from tune_fusion.tuning.cluster import Node, anywhere_but
from tune_fusion.tuning.members import Members, Proof, check_here

OWN = Node("head", 2.0, 0.0, "id-head", "10.0.0.1")
OTHER = Node("worker", 3.0, 0.0, "id-worker", "10.0.0.2")
SMALL = Node("small", 0.0, 0.0, "id-small", "10.0.0.3")


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch):
    monkeypatch.setattr(members, "_APPEAR_SECONDS", 0.0)
    monkeypatch.setattr(members, "_AGAIN_SECONDS", 0.0)


def test_a_proof_tells_the_folder_from_every_other_one(tmp_path):
    proof = Proof(tmp_path / "journal.jsonl", b"the first line")
    assert (
        proof.lacking() == f"does not share the folder {tmp_path}: what the driver wrote there is not there"
    )
    proof.path.write_bytes(b"another line")
    assert proof.lacking() == f"does not share the folder {tmp_path}: other files lie there"
    proof.path.write_bytes(b"the first line\nand more")
    assert proof.lacking() == ""
    check_here(proof)


def test_what_cannot_be_read_is_told(tmp_path):
    (tmp_path / "journal.jsonl").mkdir()
    assert Proof(tmp_path / "journal.jsonl", b"x").lacking().endswith(f"{tmp_path}: Is a directory")


def test_a_machine_that_lacks_the_folder_is_named(tmp_path):
    with pytest.raises(
        TuneFusionError, match=f"^{socket.gethostname()} does not share the folder {tmp_path}"
    ):
        check_here(Proof(tmp_path / "nothing", b"x"))


def test_a_machine_must_have_the_images_and_may_write(tmp_path, monkeypatch):
    proof = Proof(tmp_path / "proof", b"x")
    proof.path.write_bytes(b"x")
    photos = tmp_path / "photos"
    assert members._lacking(proof, "digits") == ""
    assert members._lacking(proof, f"folder:{photos}") == f"lacks the data folder {photos}"
    photos.mkdir()
    assert members._lacking(proof, f"folder:{photos}") == f"lacks the data folder {photos}"
    (photos / "train").mkdir()
    assert members._lacking(proof, f"folder:{photos}") == ""

    def read_only(**options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert members._lacking(proof, "digits") == f"cannot write to {tmp_path}: Read-only file system"


@pytest.fixture
def nodes(monkeypatch):
    """The nodes of a cluster that is only imagined, and what each of them answers when it does."""
    alive, answers = [OWN], {}
    monkeypatch.setattr(members.cluster, "nodes", lambda: list(alive))
    monkeypatch.setattr(members.cluster, "own_node", lambda: OWN.id)
    monkeypatch.setattr(Members, "_ask", lambda self, node, proof: answers.setdefault(node.id, Future()))
    monkeypatch.setattr(members, "_wait", lambda asked, check: check())
    monkeypatch.setattr(members, "_answered", Future.done)
    monkeypatch.setattr(members, "_answer", lambda answer: answer.result(timeout=0))
    monkeypatch.setattr(members, "_LOOK_SECONDS", -1.0)
    return alive, answers


def answered(words):
    answer = Future()
    answer.set_result(words)
    return answer


def make(most=None):
    return Members(ResourceSettings(cpu=1), most, DataSettings(name="digits"))


def unchecked():
    pass


def test_the_drivers_own_node_proves_nothing(nodes, tmp_path):
    ours = make()
    ours.admit([OWN], tmp_path, unchecked)
    assert (ours.slots(), ours.excluded(), nodes[1]) == (2, [], {})


def test_all_nodes_on_which_a_trial_fits_are_asked(nodes, tmp_path):
    alive, answers = nodes
    alive += [OTHER, SMALL]
    answers[OTHER.id] = answered("")
    ours = make()
    ours.admit(alive, tmp_path / "runs" / "first", unchecked)
    assert answers.keys() == {OTHER.id}
    assert (ours.slots(), ours.excluded()) == (5, [])
    assert list(tmp_path.iterdir()) == []


def test_those_that_lack_something_are_refused_by_name(nodes, tmp_path):
    alive, answers = nodes
    alive.append(OTHER)
    answers[OTHER.id] = answered("lacks the data folder /photos")
    with pytest.raises(InputError) as refused:
        make().admit(alive, tmp_path / "runs" / "first", unchecked)
    assert str(refused.value).startswith(f"--storage {tmp_path / 'runs'}: not every node of the cluster")
    assert "worker (10.0.0.2) lacks the data folder /photos; give --storage" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_waiting_for_answers_can_be_interrupted(nodes, tmp_path):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make().admit([OWN, OTHER], tmp_path, interrupted)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def watching(nodes, tmp_path):
    (tmp_path / "journal.jsonl").write_bytes(b"a line")
    ours = make()
    ours.admit([OWN], tmp_path, unchecked)
    assert ours.watch(tmp_path / "journal.jsonl") == Proof(tmp_path / "journal.jsonl", b"a line")
    return ours


def test_a_node_that_joins_gets_trials_once_it_has_answered(watching, nodes):
    alive, answers = nodes
    alive.append(OTHER)
    assert (watching.slots(), watching.excluded()) == (2, [OTHER.id])
    answers[OTHER.id].set_result("")
    assert (watching.slots(), watching.excluded(), watching.news) == (5, [], [])
    alive.remove(OTHER)
    assert watching.slots() == 2


def test_one_that_lacks_something_gets_none_and_is_told_of_once(watching, nodes):
    alive, answers = nodes
    alive.append(OTHER)
    assert watching.slots() == 2
    answers[OTHER.id].set_result("lacks it")
    for _ in range(3):
        assert (watching.slots(), watching.excluded()) == (2, [OTHER.id])
    assert watching.news == ["no trial runs on worker (10.0.0.2), which joined the cluster: it lacks it"]


def test_it_is_asked_again_after_a_while(watching, nodes, monkeypatch):
    alive, answers = nodes
    alive.append(OTHER)
    assert watching.slots() == 2
    answers.pop(OTHER.id).set_result("lacks it")
    assert watching.slots() == 2
    assert OTHER.id not in answers
    monkeypatch.setattr(members, "_REFUSED_SECONDS", -1.0)
    assert watching.slots() == 2
    answers.pop(OTHER.id).set_result("lacks it still")
    assert [watching.slots(), watching.slots()] == [2, 2]
    answers.pop(OTHER.id).set_result("")
    assert (watching.slots(), watching.excluded()) == (5, [])
    assert watching.news == [
        "no trial runs on worker (10.0.0.2), which joined the cluster: it lacks it",
        "trials run on worker (10.0.0.2): it has now what it lacked",
    ]


def test_no_more_trials_than_were_asked_for(nodes, tmp_path):
    ours = make(most=1)
    ours.admit([OWN], tmp_path, unchecked)
    assert ours.slots() == 1


def test_rays_words_for_all_nodes_but_some():
    assert anywhere_but([]) == {}
    assert anywhere_but(["a", "b"]) == {"ray.io/node-id": "!in(a,b)"}


def test_the_folder_is_made_known_in_the_nearest_one_that_exists(tmp_path):
    with members._made_proof(tmp_path / "runs" / "first") as proof:
        assert proof.path.parent == tmp_path
        assert proof.lacking() == ""
    assert not Path(proof.path).exists()
