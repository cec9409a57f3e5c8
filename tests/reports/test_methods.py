"""The paragraph for a methods section: right for each way in which a result is made."""

from func.reports.methods import methods

WEIGHTS = {"Name": "bundled", "Recipe": "compact", "SHA256": "ab" * 32}
ON_GRID = {
    "Sources": ["sub-1_T2w.nii.gz", "sub-1_T1w.nii.gz"],
    "Quality": {"SliceThickness": 4.0},
    "Weights": WEIGHTS,
    "Settings": {"Device": "auto"},
    "Versions": {"BABY-AI": "2026.11", "python": "3.11.2", "torch": "2.13.0"},
    "Checks": {"SliceResidualAfter": 0.004},
}
RAW = ON_GRID | {"Settings": {"Space": "1mm", "VoxelSize": 1.0, "Motion": "auto"}, "Motion": {"Searched": True}}
AGREES = (
    "The images were made to agree with the measured slices through a model of the slices' thickness, spacing, profile"
)


def stack(thickness, found):
    return {"SliceGeometry": {"SliceThickness": thickness}, "Motion": {"Searched": True, "Found": found}}


def test_pairs_on_the_grid():
    thin = ON_GRID | {"Quality": {"SliceThickness": 3.3}}
    assert methods([ON_GRID, thin]) == [
        "Isotropic T2w images (n = 2, 1 mm voxels) were reconstructed with BABY-AI 2026.11 (A. Lennartsson; the "
        "weights bundled, SHA-256 abababababab; python 3.11.2, torch 2.13.0), each from 1 T2w stack of 3.3–4 mm "
        f"slices and a T1w image of the same infant. {AGREES} and position."
    ]


def test_the_network_of_weights_that_hold_two_is_named():
    (told,) = methods([ON_GRID | {"Computed": {"Network": "large"}}])
    assert "the large network of the weights bundled, SHA-256 abababababab" in told


def test_a_raw_pair_is_registered_and_searched_for_motion():
    (told,) = methods([RAW])
    assert (
        "T2w and T1w were registered rigidly by mutual information. Motion between slices was searched for, and "
        in told
    )
    assert "undone in 0 of 1 stacks." in told and told.endswith(f"{AGREES} and position.")
    (moved,) = methods([RAW | {"Motion": {"Searched": True, "Found": True}}])
    assert "undone in 1 of 1 stacks." in moved and moved.endswith(f"{AGREES}, position and motion.")
    (still,) = methods([RAW | {"Motion": {"Searched": False}}])
    assert "Motion" not in still and still.endswith(f"{AGREES} and position.")


def test_several_stacks_with_motion():
    stacks = [stack(3.0, True), stack(4.0, False), stack(4.0, True)]
    sources = ["a_T2w.nii", "b_T2w.nii", "c_T2w.nii"]
    (told,) = methods([RAW | {"Stacks": stacks, "Sources": [*sources, "sub-1_T1w.nii"]}])
    assert "each from 3 T2w stacks of 3–4 mm slices and a T1w image" in told and "undone in 2 of 3 stacks" in told
    (told,) = methods([RAW | {"Stacks": stacks, "Sources": [*sources, "sub-1_T1w.nii"]}, RAW])
    assert "(n = 2, " in told and "each from 1–3 T2w stacks" in told and "undone in 2 of 4 stacks" in told
    (told,) = methods([RAW | {"Stacks": stacks, "Sources": sources}])
    assert "slices, without a T1w image. The stacks were registered rigidly to the first of them; no network" in told
    assert "mutual information" not in told and "weights" not in told


def test_a_t2w_alone_is_registered_to_nothing():
    settings = {"Space": "t2", "VoxelSize": 1.0}
    (told,) = methods([RAW | {"Sources": ["sub-1_T2w.nii.gz"], "Settings": settings, "Motion": {"Searched": False}}])
    assert "1 T2w stack of 4 mm slices, without a T1w image. The images were made to agree" in told


def test_the_published_weights_do_not_agree_with_slices():
    published = WEIGHTS | {"Name": "babyai", "Recipe": "babyai"}
    (told,) = methods([ON_GRID | {"Weights": published, "Checks": {}}])
    assert "the published weights, SHA-256 abababababab" in told and "agree" not in told


def test_voxels_are_told():
    def voxels(**settings):
        return methods([RAW | {"Settings": {"Motion": "auto", **settings}}])[0].split(") were")[0]

    assert voxels(Space="t2", VoxelSize="in-plane").endswith("voxels as small as the slices' pixels")
    assert voxels(Space="1mm", VoxelSize=0.8).endswith("0.8 mm voxels")
    assert voxels(Space="t1", VoxelSize=1.0).endswith("the T1w's own voxels")


def test_what_is_made_otherwise_has_a_paragraph_of_its_own():
    other = RAW | {"Weights": WEIGHTS | {"Name": "/home/me/mine.pth"}}
    assert len(methods([ON_GRID, RAW, other, RAW])) == 3
    assert "the weights mine.pth" in " ".join(methods([other]))
    assert methods([{}])[0].startswith(
        "Isotropic T2w images (n = 1, 1 mm voxels) were reconstructed with BABY-AI [...]"
    )
