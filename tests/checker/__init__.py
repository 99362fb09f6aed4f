"""An outside checker: clients that write down what they were told, storms, and a comparison.

`python -m tests.checker --help` storms two colonies for as long as wanted. What is compared is in
`comparer`, what clients do in `clients`, what befalls the daemons in `nemeses`.
"""
