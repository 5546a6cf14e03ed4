"""``python -m data_prep.report``."""

from data_prep.report.run import main

if __name__ == "__main__":
    main()
