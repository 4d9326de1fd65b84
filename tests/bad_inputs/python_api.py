from bad_inputs.cases import Case

CASES: list[Case] = []
