#!/usr/bin/env bash
# An environment of its own for the tests against verl, which pins older transformers than TRL wants:
#   bash scripts/verl-env.sh && .venv-verl/bin/python -m pytest -m verl tests/integrations
# verl declares dozens of packages; these are the ones that verl.trainer.ppo.core_algos and verl.trainer.ppo.v1 really import.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PIP=".venv-verl/bin/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts --no-compile"

[ -x .venv-verl/bin/python ] || "$PYTHON" -m venv .venv-verl
$PIP torch==2.13.0 'transformers==5.10.*' 'ray==2.60.*' omegaconf hydra-core codetiming \
  cloudpickle importlib_metadata orjson 'pyvers<0.2' \
  datasets peft torchdata pillow pyzmq msgspec cachetools aiohttp fastapi uvicorn \
  jaxtyping pydantic pyyaml psutil pytest pytest-timeout
$PIP --no-deps verl==0.9.1 tensordict==0.10.0 TransferQueue==0.1.11 --editable .
.venv-verl/bin/python -c 'import verl.trainer.ppo.core_algos as c; assert "policydist_bnpo" in c.ADV_ESTIMATOR_REGISTRY'
.venv-verl/bin/python -c 'import policydist.integrations.verl_trainer'
