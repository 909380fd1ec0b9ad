"""Every claim of the library runs: two development units with short settings. Says nothing about the verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from policydist.claims import available, load, run_claim

CLAIMS = [(slug, claim.id) for slug in available() for claim in load(slug)]


@pytest.mark.smoke
@pytest.mark.parametrize(("slug", "claim_id"), CLAIMS, ids=[claim_id for _, claim_id in CLAIMS])
def test_claim_runs(slug: str, claim_id: str, tmp_path: Path) -> None:
    record = run_claim(slug, claim_id, smoke=True, workers=1, state_dir=tmp_path)
    assert record["claim_id"] == claim_id
    assert all(row["value"] is not None for row in record["raw"]), "a metric was not finite"
