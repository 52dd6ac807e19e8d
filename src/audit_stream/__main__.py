from audit_stream.cli import main

main()
