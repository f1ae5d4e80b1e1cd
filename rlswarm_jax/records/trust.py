"""Whom a node does not trust for a while, by what it has found out itself: others' verdicts only say where to look."""

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence

import msgspec

from rlswarm_jax.records import rotations
from rlswarm_jax.records.audits import Case
from rlswarm_jax.records.envelope import SignedRecord
from rlswarm_jax.records.schema import NOT_PRODUCED, PRODUCED, UNDECIDED, WITHHELD, Record, Verdict

FIRST = 16  # rounds for which a first offence is held against somebody; each further one, for twice as long
MOST_ROUNDS = 1 << 20
SILENT = 3  # audits in a row that an author leaves without answer, after which that is an offence
MOST_SAID = 256  # groups of which it is remembered what others have found
MOST_FOUND = 1024  # of its own findings, that a node remembers: a court may ask for one later
MOST_OFFENDERS = 1024
MOST_HEARD = 4096  # records of which it is remembered whose they are
CONTRARY = {PRODUCED: NOT_PRODUCED, NOT_PRODUCED: PRODUCED}
MOST_HEIRS = 2  # of one key, who are one too many
REPEATED = 2  # of others' accusations, that a node looks into in a round


class Offender(msgspec.Struct, array_like=True, frozen=True):
    """times: that somebody was found out. until: the round from which on they are trusted again."""

    times: int
    until: int


class Audited(msgspec.Struct, array_like=True, frozen=True):
    """What this node found about an author's group."""

    author: bytes
    verdict: Verdict


class Trust(msgspec.Struct, array_like=True, frozen=True):
    """A value. silent: how many audits in a row an author left without answer. said: what others have found, by record
    and index, and found: what this node has; both oldest first. unsaid: what of that it has not told yet. heard: by
    content hash the authors of records, and in which round they were first here. heirs: of keys that were given up, who
    speaks in their place: what is held against the one is held against the other.

    Whoever sampled what they published otherwise than they say is an offender, whoever says of a group the contrary of
    what this node finds there, and whoever contradicts themselves, be it in whom they give their place to.
    """

    offenders: Mapping[bytes, Offender] = {}
    silent: Mapping[bytes, int] = {}
    said: Mapping[tuple[bytes, int], dict[bytes, str]] = {}
    found: Mapping[tuple[bytes, int], str] = {}
    unsaid: list[Verdict] = []
    heard: Mapping[bytes, tuple[bytes, int]] = {}
    heirs: Mapping[bytes, Sequence[bytes]] = {}

    def distrusted(self, round_: int) -> frozenset[bytes]:
        return frozenset(author for author, one in self.offenders.items() if round_ < one.until)

    def expose(self, authors: Collection[bytes], round_: int) -> "Trust":
        """After this node was shown that these contradict themselves."""
        return self._against(sorted(authors), round_)

    def succeed(self, records: Iterable[Record], round_: int) -> "Trust":
        """After what authors say in records of the keys they had before."""
        heirs, twofold = dict(self.heirs), set[bytes]()
        for old, new, _ in (one for record in records for one in rotations.of(record)):
            before = heirs.get(old, ())
            if new not in before and len(before) < MOST_HEIRS:
                heirs[old] = [*before, new]
                twofold |= {old} if before else set()
        if heirs == self.heirs:
            return self
        trust = msgspec.structs.replace(self, heirs=dict(list(heirs.items())[-MOST_OFFENDERS:]))
        offenders, silent = dict(self.offenders), dict(self.silent)
        for old, new in [(one, heir) for one in heirs for heir in trust._in_place_of(one)]:
            if old in offenders:
                worse = (offenders[old], offenders.get(new, offenders[old]))
                offenders[new] = Offender(max(one.times for one in worse), max(one.until for one in worse))
            if old in silent:
                silent[new] = max(silent[old], silent.get(new, 0))
        return msgspec.structs.replace(trust, offenders=offenders, silent=silent)._against(sorted(twofold), round_)

    def _in_place_of(self, author: bytes) -> list[bytes]:
        """Who speaks in an author's place, and in theirs."""
        found, waiting = dict.fromkeys([author]), [author]
        while waiting:
            new = [heir for heir in self.heirs.get(waiting.pop(), ()) if heir not in found]
            found |= dict.fromkeys(new)
            waiting += new
        return [*found][1:]

    def tell(self, most: int) -> "Trust":
        """After so many of its verdicts were published."""
        return msgspec.structs.replace(self, unsaid=self.unsaid[most:])

    def remember(self, authors: Mapping[bytes, bytes], round_: int, rounds: int) -> "Trust":
        """Whose records these are, by content hash, for so many rounds: a verdict comes when they are old."""
        kept = {record: one for record, one in self.heard.items() if one[1] > round_ - rounds}
        new = {record: (author, round_) for record, author in authors.items() if record not in kept}
        return msgspec.structs.replace(self, heard=dict([*kept.items(), *new.items()][-MOST_HEARD:]))

    def hear(self, records: Iterable[Record], known: Collection[bytes], round_: int) -> "Trust":
        """With what these say of others' groups, in records that are known, and no more of those that are not any more.

        Of a group nobody says two things: their first word counts. This node may have found the contrary.
        """
        said = {at: dict(findings) for at, findings in self.said.items() if at[0] in known}
        guilty = set[bytes]()
        for record in records:
            for verdict in record.verdicts:
                if verdict.record in known:
                    at = verdict.record, verdict.index
                    word = said.setdefault(at, {}).setdefault(record.author, verdict.finding)
                    if word == CONTRARY.get(self.found.get(at, "")):
                        guilty.add(record.author)
        newest = list(said.items())[-MOST_SAID:]
        return msgspec.structs.replace(self, said=dict(newest))._against(sorted(guilty), round_)

    def to_repeat(self, authors: Mapping[bytes, bytes], own: bytes, round_: int) -> list[Case]:
        """Accusations that this node looks into, of records by content hash with their authors."""
        distrusted = self.distrusted(round_)
        found = []
        for (record, index), findings in self.said.items():
            author = authors.get(record, own)  # of what is not here, nothing can be found out
            accused = {who for who, finding in findings.items() if finding in (NOT_PRODUCED, WITHHELD)} - distrusted
            if author != own and author not in distrusted and accused - {author} and (record, index) not in self.found:
                found.append(Case(record, index))
        return found[-REPEATED:]

    def find(self, audited: Iterable[Audited], round_: int) -> "Trust":
        """After what this node has found out itself."""
        silent, found = dict(self.silent), dict(self.found)
        unsaid, guilty = list(self.unsaid), list[bytes]()
        for author, verdict in ((one.author, one.verdict) for one in audited):
            unsaid.append(verdict)
            found[verdict.record, verdict.index] = verdict.finding
            others = self.said.get((verdict.record, verdict.index), {})
            guilty += [who for who, finding in others.items() if finding == CONTRARY.get(verdict.finding)]
            if verdict.finding == WITHHELD:
                silent[author] = silent.get(author, 0) + 1
            elif verdict.finding != UNDECIDED:
                silent.pop(author, None)
            if verdict.finding == NOT_PRODUCED or silent.get(author, 0) >= SILENT:
                silent.pop(author, None)
                guilty.append(author)
        silent, found = dict(list(silent.items())[-MOST_OFFENDERS:]), dict(list(found.items())[-MOST_FOUND:])
        return msgspec.structs.replace(self, silent=silent, found=found, unsaid=unsaid)._against(guilty, round_)

    def _against(self, guilty: Iterable[bytes], round_: int) -> "Trust":
        offenders = dict(self.offenders)
        for author in itertools.chain.from_iterable((one, *self._in_place_of(one)) for one in guilty):
            times = offenders[author].times + 1 if author in offenders else 1
            offenders[author] = Offender(times, round_ + min(FIRST << min(times - 1, 20), MOST_ROUNDS))
        latest = sorted(offenders.items(), key=lambda item: (-item[1].until, item[0]))[:MOST_OFFENDERS]
        return msgspec.structs.replace(self, offenders=dict(latest))


def contradictory(records: Iterable[SignedRecord]) -> frozenset[bytes]:
    """Authors of two different ones of these for one stage of a round, each of which they signed."""
    said: dict[tuple[bytes, int, str], bytes] = {}
    slots = (((one.record.author, one.record.round, one.record.stage), one.hash) for one in records)
    return frozenset(slot[0] for slot, content in slots if said.setdefault(slot, content) != content)
