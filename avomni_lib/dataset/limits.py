"""Where a clip's poses, clocks and streams end to be sound: one place for 01, 03 and `own.pack`.

What is beyond a limit marked *damaged* is left out by all three; the others make a clip *odd*.
"""

from __future__ import annotations

# --- tables ----------------------------------------------------------------------------------
# Rows of one clip's table: 100 a second for almost three hours. A few bytes of a parquet file can
# stand for billions of rows.
MAX_ROWS = 1_000_000
# µs; the year 2096 on Unix time. What is beyond is nanoseconds, or no time. Damaged.
MAX_TIME_US = 4_000_000_000_000_000
# m, m/s, px, …: the Earth's radius is 6.4e6 m. Arithmetic overflows far above it. Damaged.
MAX_NUMBER = 1e9

# --- pictures and poses in time --------------------------------------------------------------
# Two a second, with a tenth for jitter: pictures are sampled twice a second, and from one pose to
# the next is interpolated (at 5 m/s² off by 0.19 m at most). Damaged.
MAX_GAP_S = 0.55
# Kept of the ego motion before the first frame, for models that see the past.
HISTORY_S = 1.6
# A file's frame interval against its timestamps': clocks differ by 1e-4, rates by a fifth. Damaged.
CLOCK_TOLERANCE = 0.05
# Of an interval, where the file's frames differ in length and so keep time: beyond half of one
# a row may be off by a frame. Damaged.
INTERVAL_TOLERANCE = 0.5
# The data set's cameras run at 30 Hz and start within a tenth of a second of the clip's time 0.
STEP_S, FIRST_S = 1 / 30, 0.1
# A mean step off by more than this is another rate; exposure control moves single frames.
RATE_TOLERANCE = 0.02
# Half a frame more than one step: at least one frame is not there.
DROPPED, TOO_CLOSE = 1.5, 0.5
# Clips are cut at the same length: 0.25 s are more frames than cameras differ by.
END_TOLERANCE_S = 0.25

# --- streams ---------------------------------------------------------------------------------
# Zeros behind a NAL unit's last byte, within its length. No unit ends with a zero by itself
# (H.264 and H.265 7.4.1), so what there is was filled up: by one or two, to a multiple of 16 as
# phones do, or in another manner that half of a file's pictures share. H.264's decoder notices a
# picture that ends early; H.265's does not, so that other zeros are a hole in the file. Damaged.
FEW_ZEROS, ALIGNMENT = 2, 16
USUAL_SHARE, USUAL_TIMES = 0.5, 4
# Frames of AV1, VP9 and MPEG-4 are entropy-coded from their first bytes to their last and hardly
# ever hold eight zeros. Damaged.
HOLE_BYTES = 8
# Frame times are rounded to the stream's time base, and to whole µs on the way.
STEP_TOLERANCE_S = 1e-4

# --- ego motion ------------------------------------------------------------------------------
# float64 quaternions of unit length that were stored as float32 stay within this. Damaged.
UNIT_TOLERANCE = 1e-3
# A step of positions against the mean of the speeds at its ends, beyond what is usual in the clip
# (speeds that are off everywhere are no jump) and beyond what a car can do between two rows
# (12 m/s² of tyres at their limit: a·dt²/2). A pose filter's own noise is millimetres (a real drive
# with a survey-grade pose at 20 Hz: 1 mm at most). The label is printed in hundredths of a metre,
# so a quarter of one is worth a look; a metre is damaged.
JUMP_M, REFUSED_JUMP_M, MAX_ACCELERATION = 0.25, 1.0, 12.0
# Path by positions against path by velocities, over all that is needed: m, and share. A speedometer
# may show a tenth too much (UNECE R39); two metres are a filter settling. Damaged.
PATH_TOLERANCE = (2.0, 0.1)
# The same over half a second, in which a decimetre of noise is no course: m/s, and share.
SPAN_S, SPEED_TOLERANCE = 0.5, (1.0, 0.1)
# Between the course of positions and where the car points, median over all that moves at more than
# a walking pace: a car slips by some degrees, axes taken for others are a quarter turn. Damaged.
MOVES_MPS, MAX_SLIP_DEG = 1.0, 30.0
# Tyres hold 12 m/s², a crash or an error is above; 70 m/s is 252 km/h; cars turn by 1 rad/s.
LIMIT_ACCELERATION, LIMIT_SPEED, LIMIT_TURN, TURN_SLACK = 15.0, 70.0, 2.0, 0.035
# A path is the polygon over rows at least so far apart, and where the car turned back by so much.
HOP_M, BACK_M = 0.5, 0.1
