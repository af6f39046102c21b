from ich_keras.evaluation.leakage import leakage_table, protocol_table
from ich_keras.paper import MEASURES

COUNTS = {
    "protocol": "paper", "fold": 0, "test_slices": 1000, "patient_known": 500, "slices_patient_shared": 450,
    "patients": 80, "patients_shared": 60, "study_known": 250, "slices_study_shared": 100, "studies": 40,
    "studies_shared": 10, "z_known": 0, "neighbours": 0,
}  # fmt: skip


def test_shares():
    text = leakage_table([COUNTS, {**COUNTS, "protocol": "patient", "patients_shared": 0}]).markdown()
    assert "| Patients also in training | 60 (75.0%) | 0 (0.0%) |" in text
    assert "| Studies also in training | 10 (25.0%) | 10 (25.0%) |" in text
    assert "| of them, sharing the patient with training | 450 (90.0%) | 450 (90.0%) |" in text
    assert "| of them, sharing the study with training | 100 (40.0%) | 100 (40.0%) |" in text
    assert "| of them, beside a training slice | 0 | 0 |" in text
    assert "| patient protocol, fold 0 |" in text


def test_protocols_side_by_side():
    def document(value):
        average = dict.fromkeys(MEASURES, value)
        return {"title": "Hybrid", "averages": {"micro_any6": average}, "labels": {"any": {"auc": value}}}

    text = protocol_table({"paper": document(0.99), "patient": document(0.9)}).markdown()
    assert "| paper (Hybrid) | 0.9900" in text
    assert "| patient (Hybrid) | 0.9000" in text
