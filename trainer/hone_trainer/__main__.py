import sys

from hone_trainer.main import main

sys.exit(main())
