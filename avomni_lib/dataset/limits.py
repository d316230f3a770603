"""Limits for a clip's poses, clocks and streams, shared by 01_audit, 03_etl and `own.pack`.

Clips beyond a limit marked "Damaged" are left out by all three; the other limits make a clip odd.
"""

from __future__ import annotations

# --- tables ----------------------------------------------------------------------------------
# Rows of one clip's table: almost three hours at 100 Hz. A few bytes of a parquet file can encode
# billions of rows.
MAX_ROWS = 1_000_000
# µs; the year 2096 in Unix time. Larger values are nanoseconds, or not times. Damaged.
MAX_TIME_US = 4_000_000_000_000_000
# m, m/s, px, …: the Earth's radius is 6.4e6 m, and arithmetic overflows far above this. Damaged.
MAX_NUMBER = 1e9

# --- pictures and poses in time --------------------------------------------------------------
# Largest gap between frames or poses: 0.5 s plus 10 % for jitter. Frames may be sampled at 2 Hz,
# and interpolating poses across the gap is off by 0.19 m at most at 5 m/s². Damaged.
MAX_GAP_S = 0.55
# Ego motion kept before the first frame, for models that see the past.
HISTORY_S = 1.6
# A file's frame interval relative to that of its timestamps: clocks differ by 1e-4, frame rates by
# at least a fifth. Damaged.
CLOCK_TOLERANCE = 0.05
# Share of an interval by which a file with a variable frame rate may differ from its timestamps:
# beyond half an interval a row may be off by a frame. Damaged.
INTERVAL_TOLERANCE = 0.5
# The data set's cameras run at 30 Hz and start within 0.1 s of the clip's time 0.
STEP_S, FIRST_S = 1 / 30, 0.1
# Beyond this the median interval is another frame rate; exposure control shifts single frames.
RATE_TOLERANCE = 0.02
# In intervals: above the first at least one frame was dropped.
DROPPED, TOO_CLOSE = 1.5, 0.5
# Clips are cut at the same length, and cameras differ by fewer frames than this.
END_TOLERANCE_S = 0.25

# --- streams ---------------------------------------------------------------------------------
# Zeros at the end of a NAL unit, within its length. No unit ends with a zero by itself (H.264 and
# H.265 7.4.1), so these are padding: one or two, up to a multiple of 16 as phones do, or another
# pattern that half of a file's pictures share. Any other zeros are a hole in the file; H.264's
# decoder detects a picture that ends early, H.265's does not. Damaged.
FEW_ZEROS, ALIGNMENT = 2, 16
USUAL_SHARE, USUAL_TIMES = 0.5, 4
# Frames of AV1, VP9 and MPEG-4 are entropy-coded throughout and hardly ever contain eight zeros in
# a row. Damaged.
HOLE_BYTES = 8
# Frame times are rounded to the stream's time base, and to whole µs.
STEP_TOLERANCE_S = 1e-4

# --- ego motion ------------------------------------------------------------------------------
# Unit quaternions that were stored as float32 stay within this. Damaged.
UNIT_TOLERANCE = 1e-3
# Difference of a step of positions and the mean speed at its ends, beyond the clip's median (speeds
# that are wrong everywhere are no jump) and beyond a car's acceleration between two rows (a·dt²/2
# with 12 m/s², the limit of tyres). The noise of a pose filter is millimetres (at most 1 mm on a
# real drive with a survey-grade pose at 20 Hz). Labels are printed in hundredths of a metre, so
# 0.25 m is odd; 1 m is damaged.
JUMP_M, REFUSED_JUMP_M, MAX_ACCELERATION = 0.25, 1.0, 12.0
# Path length by positions compared with that by velocities: m, and share. A speedometer may show a
# tenth too much (UNECE R39); a settling filter explains two metres. Damaged.
PATH_TOLERANCE = (2.0, 0.1)
# The same over half a second, in m/s and share; tolerates noise of a decimetre.
SPAN_S, SPEED_TOLERANCE = 0.5, (1.0, 0.1)
# Angle between the course of positions and the heading, median above walking pace: cars slip by a
# few degrees, mixed-up axes give a quarter turn. Damaged.
MOVES_MPS, MAX_SLIP_DEG = 1.0, 30.0
# Tyres reach 12 m/s², more is a crash or an error; 70 m/s is 252 km/h; cars turn by up to 1 rad/s.
LIMIT_ACCELERATION, LIMIT_SPEED, LIMIT_TURN, TURN_SLACK = 15.0, 70.0, 2.0, 0.035
# A path is the polygon over rows at least HOP_M apart, and over points where the car turned back by
# more than BACK_M.
HOP_M, BACK_M = 0.5, 0.1
