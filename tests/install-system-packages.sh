#!/usr/bin/env bash
# Debian packages of the tests: a SLURM for tests/slurm and a Chromium for tests/browser. Needs root.
set -euo pipefail
missing=()
for command in slurmctld munged chromium chromedriver; do
  PATH="$PATH:/usr/sbin" command -v "$command" >/dev/null || missing+=("$command")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
echo "installing system packages (missing: ${missing[*]})"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge chromium chromium-driver
