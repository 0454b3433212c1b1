from services.mapper.main import main

main()
