"""Checks the parts of your PPO against the official code: python details/check.py yours.py

The package ppo_check has the program; docs/check.md says how to use it.
"""

import sys

from ppo_check import main

if __name__ == "__main__":
    sys.exit(main())
