"""A sweep over ranks: divided, merged, completed after a loss; and refusals that come as one line, without a hang."""

from dataclasses import replace

import pytest
from rank_sweeps import CPU, TORCH, cases, plan, record
from torch.distributed import HashStore

from bench import run
from bench.cli import BadArgument
from bench.measure import environment
from bench.measure.cost import expected_seconds
from bench.measure.progress import LineDisplay
from bench.ranks import gathering, shards
from bench.ranks.shards import deal
from bench.ranks.team import Team, join
from bench.results import records as results
from bench.results import samples

# ------------------------------------------------------------------------------------------------------- dividing


@pytest.mark.parametrize("ranks", [1, 2, 3, 50])
def test_every_case_is_some_ranks_and_problems_stay_whole(ranks):
    made = cases(tokens=(4, 8, 512), hidden=(8, 4096))
    shares = deal(made, ["normlib", "torch"], CPU, ranks)
    assert len(shares) == ranks and sorted(sum(shares, ()), key=made.index) == list(made)
    problems = [{case.problem for case in share} for share in shares]
    assert sum(map(len, problems)) == len(set().union(*problems))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_no_rank_has_much_more_to_do_than_another(ranks):
    made = cases(tokens=(4, 64, 512), hidden=(8, 64, 1024, 4096))
    seconds = lambda share: sum(expected_seconds(case, ["normlib"], CPU) for case in share)
    longest = max(seconds([c for c in made if c.problem == case.problem]) for case in made)
    least = max(seconds(made) / ranks, longest)  # no division can be better
    assert max(map(seconds, deal(made, ["normlib"], CPU, ranks))) <= 4 / 3 * least


# -------------------------------------------------------------------------------------------------------- merging


def test_merging_keeps_the_plans_order_and_whose_device_it_was(tmp_path):
    made = cases()
    for i, case in enumerate(reversed(made)):
        place = gathering.rank_folder(tmp_path, i % 2)
        place.mkdir(parents=True, exist_ok=True)
        mine = record(case)
        results.append(place / results.RECORDS, mine)
        samples.append(place / samples.FILE, samples.Samples(mine.key, {"cold_us": [1.0]}))
    for rank in (0, 1):
        (gathering.rank_folder(tmp_path, rank) / results.TRACES).write_text(f"of rank {rank}\n")
    # One line that was cut short, as a kill leaves it, and a cell that was skipped before.
    with (gathering.rank_folder(tmp_path, 1) / results.RECORDS).open("a") as file:
        file.write('{"op": "rms')
    results.append(tmp_path / results.RECORDS, record(made[0], status="skipped"))
    merged = gathering.merge(tmp_path, [(case, "torch") for case in made])
    assert [r.case for r in merged] == list(made) and {r.status for r in merged} == {"ok"}
    assert [r.rank for r in merged] == [(len(made) - 1 - i) % 2 for i in range(len(made))]
    assert list(results.read(tmp_path / results.RECORDS)) == merged
    assert len(list(samples.read(tmp_path / samples.FILE))) == len(made)
    assert (tmp_path / results.TRACES).read_text() == "of rank 0\nof rank 1\n"
    assert not (tmp_path / results.SHARDS).exists()
    assert gathering.merge(tmp_path) == merged, "and again"


def measured(tmp_path, times):
    case = cases()[0]
    for rank, microseconds in enumerate(times):
        place = gathering.rank_folder(tmp_path, rank) / gathering.CHECK
        place.mkdir(parents=True)
        results.append(place / results.RECORDS, record(case, clock="cuda_event", latency_us=microseconds))
    return gathering.agreement(tmp_path)


def test_devices_that_agree_are_said_to_with_their_spread(tmp_path):
    (line,) = gathering.said(measured(tmp_path, [10.0, 10.2, 9.9, 10.0]))
    assert line.endswith("on 4 ranks: the same errors, median times within 3.0%: the devices agree")


def test_a_device_that_differs_is_named(tmp_path):
    (line,) = gathering.said(measured(tmp_path, [10.0, 10.0, 12.0, 10.0]))
    assert line.endswith("median times within 20.0%: the devices do not agree (rank 2 +20.0%)")


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def described():
    return environment.collect(CPU, {"torch": TORCH}) | {"ranks": 2, "notes": [], "copy_gbps": None}


def leads(team, folder, described):
    import rich.console

    return shards.lead(team, plan(), folder, described, [], LineDisplay(rich.console.Console(quiet=True)))


@pytest.mark.chance
def test_a_rank_that_does_not_come_is_named(tmp_path, described):
    with pytest.raises(BadArgument, match=r"^torchrun: nothing was heard of rank 1 for 0.2 s; start it with torchrun"):
        leads(Team(HashStore(), 0, 2, 0.2), tmp_path, described)


@pytest.mark.parametrize(
    ("key", "value"), [("torch", "1.0"), ("device_name", "another GPU"), ("git_commit", "elsewhere")]
)
def test_a_rank_with_other_conditions_is_refused_and_hears_of_it(tmp_path, described, key, value):
    store = HashStore()
    other = Team(store, 1, 2)
    other.tell("here/1", {"described": {**described, key: value}, "plan": shards._fingerprint(plan())})
    name = key.replace("_", " ")
    with pytest.raises(BadArgument, match=f"^torchrun: rank 1 is not like rank 0: {name} was .* is '{value}'$"):
        leads(Team(store, 0, 2), tmp_path, described)
    assert shards.assist(other, plan(), described) == 2
    assert not (tmp_path / results.RECORDS).exists()


def test_a_rank_with_other_arguments_is_refused(tmp_path, described):
    store = HashStore()
    Team(store, 1, 2).tell("here/1", {"described": described, "plan": shards._fingerprint(replace(plan(), seed=1))})
    with pytest.raises(BadArgument, match="its arguments give other cells"):
        leads(Team(store, 0, 2), tmp_path, described)


@pytest.mark.chance
def test_a_rank_waits_for_rank_0_no_longer_than_it_must(described):
    with pytest.raises(BadArgument, match="nothing was heard of rank 0"):
        shards.assist(Team(HashStore(), 1, 2, 0.2), plan(), described)


@pytest.mark.chance
def test_a_rank_that_shows_no_sign_of_life_is_lost():
    store = HashStore()
    team = Team(store, 0, 3)
    team.tell("done/2", "")
    assert team.wait_for("done", [1, 2], 0.5) == {1}


def test_without_a_rendezvous_there_is_one_line(monkeypatch, capfd):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert run.main(["--op", "rms", "--tokens", "4", "--hidden", "8", "--providers", "torch"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("bench.run: error: torchrun: there is no rendezvous: ")
    assert "MASTER_ADDR expected, but not set; start it with torchrun --nproc-per-node=N" in line


@pytest.mark.chance
def test_a_rendezvous_where_nobody_is_has_an_end(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadArgument, match=r"^torchrun: there is no rendezvous: "):
        join(1.0)


def test_another_number_of_ranks_does_not_continue_a_run(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    arguments = ["--op", "rms", "--tokens", "4", "--hidden", "8", "--dtype", "fp32", "--providers", "torch"]
    assert run.main([*arguments, "--in-process", "--out", "one"]) == 0
    capfd.readouterr()
    monkeypatch.setattr(shards, "join", lambda: Team(HashStore(), 0, 3))
    assert run.main(["--resume", "one"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "ranks was 1, is 3; --force continues it" in line
