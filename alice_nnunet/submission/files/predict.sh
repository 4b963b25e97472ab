#!/bin/sh
# Segment every INPUTS/CASE_0000.nii.gz into OUTPUTS/CASE.nii.gz. If the model takes several
# channels, CASE_0001.nii.gz and so on must be there, too.
#
# Usage: sh predict.sh [INPUTS [OUTPUTS]]     default: /workspace/inputs /workspace/outputs
#
# OUTPUTS/resources.json has seconds and peak memory of each case.
# PYTHON=... chooses another interpreter than python3.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

export PYTHONPATH="$here/code${PYTHONPATH:+:$PYTHONPATH}"
export nnUNet_extTrainer="$here/code/alice_nnunet/trainers"

exec "${PYTHON:-python3}" "$here/predict.py" "$@"
