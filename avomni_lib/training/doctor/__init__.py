"""Does what training relies on work on this machine?

doctor            all checks
machine           what the machine brings
platforms         which versions fit together
probes            small computations beside their formula
attention_probes  attention beside its formula
comparison        how far apart
findings          the lines of the report
"""
