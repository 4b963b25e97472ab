#!/bin/sh
# Segment every INPUTS/CASE_0000.nii.gz (CASE_0001.nii.gz ... where the model takes several channels) into OUTPUTS/CASE.nii.gz.
# Usage: sh predict.sh [INPUTS [OUTPUTS]]     default: /workspace/inputs /workspace/outputs
# OUTPUTS/resources.json tells seconds and peak memory of each case. PYTHON=... names another interpreter than python3.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
export PYTHONPATH="$here/code${PYTHONPATH:+:$PYTHONPATH}"
export nnUNet_extTrainer="$here/code/alice_nnunet/trainers"
exec "${PYTHON:-python3}" "$here/predict.py" "$@"
