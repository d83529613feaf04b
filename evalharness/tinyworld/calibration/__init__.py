"""Whether tinyworld's scores mean what they claim: known videos, known verdicts.

python -m evalharness.tinyworld.calibration --out docs/calibration --videos 100 --model 100
"""
