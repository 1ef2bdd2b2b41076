from hone_cli.main import main

main()
