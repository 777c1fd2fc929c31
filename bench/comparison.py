"""Two results of one suite: what has become slower against its peers."""

_KEPT = 0.9  # a ratio below this part of the earlier one has fallen


def fallen(now: list[dict], earlier: list[dict]) -> list[str]:
    """A line per case, peer and phase whose ratio has fallen by more than 10 %.

    Cases, peers and phases that only one of the results has are passed over.
    """
    before = {tuple(row["key"].values()): row["ratios"] for row in earlier}
    lines = []
    for row in now:
        key = tuple(row["key"].values())
        for peer, phases in row["ratios"].items():
            for phase, ratio in phases.items():
                old = before.get(key, {}).get(peer, {}).get(phase)
                if old and ratio["median"] < _KEPT * old["median"]:
                    lines.append(
                        f"{' '.join(key)}, {phase}: {peer} / subject fell from {old['median']:.2f} "
                        f"to {ratio['median']:.2f}"
                    )
    return lines
