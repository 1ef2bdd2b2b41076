from hone_server.main import main

main()
