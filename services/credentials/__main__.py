from services.credentials.main import main

main()
