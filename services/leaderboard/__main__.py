"""`python -m services.leaderboard`."""

from bellhop.service import run
from services.leaderboard.app import build
from services.leaderboard.settings import LeaderboardSettings

run("leaderboard", LeaderboardSettings, build)
