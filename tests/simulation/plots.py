"""Plots for `test_mutations`: small worlds, each made so that one kind of mishap is likely.

Nothing of what `scenario` drew is kept, so a change there does not change these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields

from federation.peers.policy import Policy
from node.host.config import RouteConfig
from tests.simulation.actors import Job
from tests.simulation.foes import EVE
from tests.simulation.scenario import Story
from tests.simulation.world import Faults

Tune = Callable[[Story], None]
_NEXT = (1, 2, 0)  # to whom each of three colonies sends
_PATIENCE = 400.0  # virtual seconds; more than the second look for outcomes takes


def _bare(story: Story, faults: Faults, length: float, longest: float) -> None:
    """Three colonies that trust each other, and nothing else."""
    fresh = Story(story.world, story.colonies, faults=faults, length=length, longest=longest)
    for each in fields(Story):
        setattr(story, each.name, getattr(fresh, each.name))
    story.world.dice.seed(story.world.seed)
    story.patience, story.unrest, story.talks = _PATIENCE, 0, False
    story.skews = [0.0] * story.colonies
    everybody = range(story.colonies)
    story.trust = {(one, other) for one in everybody for other in everybody if one != other}


def _work(
    story: Story,
    copies: int,
    *,
    to: Callable[[int], str] = lambda source: f"c{_NEXT[source]}",
    sources: Iterable[int] = (0, 1, 2),
    wait: int = 0,
    run: int = 0,
    cancel: float | None = None,
    decide: float | None = None,
    remove: float | None = None,
    at: tuple[float, float] | None = None,
) -> None:
    """`copies` jobs of each source; those with a `cancel` have it within so many seconds."""
    dice, (first, last) = story.world.dice, at or (0.0, 0.5 * story.length)
    for source in sources:
        for number in range(copies):
            job = Job(
                number,
                dice.uniform(first, last),
                to(source),
                wait,
                run,
                0,
                cancel=None if cancel is None else dice.uniform(0.0, cancel),
                decide=decide,
                remove=remove,
            )
            story.jobs.append((source, job))


def calm(story: Story) -> None:
    """Nothing goes wrong."""
    _bare(story, Faults(), 4.0, 2.0)
    _work(story, 2)


def echoing(story: Story) -> None:
    """Most messages come twice."""
    _bare(story, Faults(duplicate=0.7), 6.0, 1.0)
    _work(story, 2)


def strangers(story: Story) -> None:
    """Colonies that send to one that does not trust them."""
    _bare(story, Faults(), 4.0, 2.0)
    story.talks = True
    story.trust = {(source, _NEXT[source]) for source in range(3)}
    _work(story, 1, wait=4, run=2)


def hostile(story: Story) -> None:
    """A liar and a listener, and busy ones."""
    _bare(story, Faults(), 8.0, 8.0)
    story.foes, story.foe_pause = True, 0.4
    _work(story, 2)
    _work(story, 1, cancel=2.0)
    _work(story, 1, to=lambda _: EVE, wait=10, run=10)


def haunted(story: Story) -> None:
    """A liar who hardly pauses, and much to be overheard."""
    _bare(story, Faults(), 8.0, 8.0)
    story.foes, story.foe_pause = True, 0.1
    _work(story, 4)
    _work(story, 2, cancel=2.0)


def lying(story: Story) -> None:
    """A liar, and nobody who waits for long."""
    _bare(story, Faults(), 4.0, 1.0)
    story.foes, story.world.most_steps = True, 2500
    _work(story, 1, to=lambda _: EVE, wait=10, run=10)


def frail(story: Story) -> None:
    """Stores that often do not answer a write."""
    _bare(story, Faults(unavailable=0.3), 6.0, 1.0)
    _work(story, 3)


def torn(story: Story) -> None:
    """As `frail`, with work that stays at home and takes long."""
    _bare(story, Faults(unavailable=0.3), 8.0, 8.0)
    _work(story, 3, to=lambda source: f"c{source}")


def deadly(story: Story) -> None:
    """Daemons that often die, with messages that often have no answer."""
    _bare(story, Faults(kill=0.1, drop=0.5), 12.0, 1.0)
    story.troubles, story.unrest = ("kill",), 15
    _work(story, 3)


def mortal(story: Story) -> None:
    """Daemons that die at a write, again and again, with little to do."""
    _bare(story, Faults(kill=0.3), 60.0, 0.5)
    _work(story, 2, at=(0.0, 50.0))


def restless(story: Story) -> None:
    """Daemons that start again and again."""
    _bare(story, Faults(), 15.0, 0.5)
    story.troubles, story.unrest = ("kill",), 8
    _work(story, 2)


def moody(story: Story) -> None:
    """Owners that block a colony once its work is done."""
    _bare(story, Faults(), 10.0, 0.2)
    story.troubles, story.unrest = ("block",), 30
    _work(story, 1, sources=(0,))


def cross(story: Story) -> None:
    """Owners that block a colony in the middle of its work."""
    _bare(story, Faults(), 10.0, 12.0)
    story.troubles, story.unrest = ("block",), 12
    _work(story, 2)


def evasive(story: Story) -> None:
    """Work may go to any colony, to the next one when the first does not answer."""
    _bare(story, Faults(drop=0.6), 20.0, 20.0)
    story.talks = True
    story.routes = {source: [RouteConfig(to="any", retry=True)] for source in range(3)}
    _work(story, 4, to=lambda source: f"c{source}", wait=8, run=60, at=(5.0, 12.0))


def undecided(story: Story, cancel: float | None = None) -> None:
    """Work that waits goes away, just when an executor of ours takes it, from frail stores."""
    _bare(story, Faults(unavailable=0.3, slow=1.0, slowest=0.5), 8.0, 1.5)
    story.talks, story.paces = True, (1.0, 2.0)
    story.routes = {source: [RouteConfig(when="waiting > 0s", to="any")] for source in range(3)}
    _work(story, 12, to=lambda source: f"c{source}", sources=(0, 1), at=(2.0, 3.0), cancel=cancel)


def wavering(story: Story) -> None:
    """As `undecided`, and who wanted it may want it no more."""
    undecided(story, cancel=2.0)


def crowded(story: Story) -> None:
    """More work than the policies allow at a time."""
    _bare(story, Faults(), 6.0, 8.0)
    story.policies = {pair: Policy(max_waiting=1, max_running=1) for pair in story.trust}
    _work(story, 6, sources=(0,))


def circular(story: Story) -> None:
    """Work that names the way back to where it comes from."""
    _bare(story, Faults(), 4.0, 2.0)
    story.hops = 3
    story.policies = {pair: Policy(forward=True, max_hops=4) for pair in story.trust}
    _work(story, 1, to=lambda source: f"c{_NEXT[source]}/c{source}")


def faraway(story: Story) -> None:
    """Work that goes a hop further than the last colony allows."""
    _bare(story, Faults(), 4.0, 2.0)
    story.hops = 3
    for pair in story.trust:
        to_next = pair[0] == _NEXT[pair[1]]
        story.policies[pair] = Policy(forward=to_next and pair[0] == 1, max_hops=1 + (pair[0] == 1))
    _work(story, 2, to=lambda source: "c1/c2", sources=(0,))


def hurried(story: Story) -> None:
    """Whoever submits thinks better of it soon, and messages are slow."""
    _bare(story, Faults(slow=0.6, slowest=3.0, drop=0.2, late=0.2), 8.0, 1.0)
    _work(story, 3, cancel=3.0)


def crossed(story: Story) -> None:
    """As `hurried`, to colonies that want all later."""
    _bare(story, Faults(slow=0.8, slowest=3.0), 8.0, 8.0)
    story.policies = {pair: Policy(max_waiting=1) for pair in story.trust}
    _work(story, 8, sources=(0,), cancel=5.0)


def tardy(story: Story) -> None:
    """Messages come long after anybody waits for their effect."""
    _bare(story, Faults(late=0.8), 60.0, 1.0)
    _work(story, 3, wait=2, run=2)


def pressed(story: Story) -> None:
    """Work that must end before it can, and answers that are lost."""
    _bare(story, Faults(drop=0.3), 8.0, 5.0)
    _work(story, 2, wait=2, run=1)


def secluded(story: Story) -> None:
    """Nobody is reached in time."""
    _bare(story, Faults(), 8.0, 1.0)
    story.troubles, story.unrest = ("split",), 12
    _work(story, 2, wait=1, run=1)


def tidy(story: Story) -> None:
    """Whoever submits removes it soon."""
    _bare(story, Faults(), 5.0, 5.0)
    _work(story, 2, remove=1.0)


def unsettled(story: Story) -> None:
    """As `evasive`, where peers are not reached, and from frail stores."""
    _bare(story, Faults(unavailable=0.3), 12.0, 2.0)
    story.talks = True
    story.troubles, story.unrest = ("split", "kill"), 12
    story.routes = {source: [RouteConfig(to="any", retry=True)] for source in range(3)}
    _work(story, 2, to=lambda source: f"c{source}", wait=12, run=20)


def revoked(story: Story) -> None:
    """Owners take back what is slow to be answered, then block where it was."""
    _bare(story, Faults(slow=0.8, slowest=3.0), 10.0, 4.0)
    story.troubles, story.unrest = ("block",), 14
    _work(story, 3, decide=0.5)
