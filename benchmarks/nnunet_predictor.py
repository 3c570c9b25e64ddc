"""What nnU-Net's own predictor gives for a model folder and a case, for `bench_import.py --logits`.

It runs where nnU-Net is installed, not this project: see "nnU-Net's own predictor" in benchmarks/README.md.
Call it with the model folder, the four images in the order of its channels, and the .npz to write.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch


def main() -> None:
    """Preprocess and predict as nnU-Net does by default, without mirror images; write logits [K, Z, Y, X]."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder, *images, output = sys.argv[1:]
    device = torch.device("cpu")
    predictor = nnUNetPredictor(
        use_mirroring=False, perform_everything_on_device=False, device=device, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(folder, None)
    volumes, properties = SimpleITKIO().read_images(images)
    configuration = predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    arguments = predictor.plans_manager, configuration, predictor.dataset_json
    data, *_ = preprocessor.run_case_npy(volumes, None, properties, *arguments)
    began = time.perf_counter()
    logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(np.ascontiguousarray(data)))
    print(f"{data.shape}: {time.perf_counter() - began:.1f} s on {torch.get_num_threads()} threads")
    np.savez_compressed(output, logits=logits.numpy(), data=data)


if __name__ == "__main__":
    main()
