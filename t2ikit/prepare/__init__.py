"""Raw photos to the records that training reads: images, captions, CutMix, encoding. ``t2ikit prepare`` runs these.

Below one folder DIR, which every step is given::

    DIR/images/{train,val,train_cmall}      uint8 pixels, without captions      images, cutmix
    DIR/captions/{train,val,train_cmall}    one line of JSON per image          captions, cutmix
    DIR/{train,val,train_cmall}             the records of training             encode
    DIR/text_encoder                        a small T5, if one was asked for    encode
"""
