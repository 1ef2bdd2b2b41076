from hone_operator.main import main

main()
