"""python -m alice_nnunet.pretrain, for torchrun: the command alice-pretrain."""

from alice_nnunet.pretrain.commands.pretrain import main

if __name__ == "__main__":
    main()
